"""stub"""

import random
from dataclasses import dataclass


@dataclass
class Draw:
    values: dict
    memory: dict


class Search:
    def __init__(self, space, options):
        self.space, self.options = space, options

    def draw(self, number):
        r = random.Random(number)
        v = {}
        for p in self.space.parameters:
            if p.kind == "subset":
                v[p.key] = [x for x in p.values if r.random() < 0.5] or [p.values[0]]
            else:
                v[p.key] = r.choice(p.values)
        return Draw(v, {})

    def tell(self, t):
        pass

    def recall(self, t):
        pass
