def write_results(sweep, space, history):
    pass


def write_report(sweep, space, history):
    pass
