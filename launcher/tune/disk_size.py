def bytes_of(t):
    return 1
