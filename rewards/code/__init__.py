"""The built-in reward `code`: programs that a model wrote, run against tests in a sandbox.

    extract.py    the program in a completion             reward.py    the reward function, its args, its facts
    shapes.py     a row of data -> what to run            pool.py      supervisors of this process, kept and ended
    box/          what runs in other processes            remote.py    the same over HTTP; serve.py is its server

Nothing is imported here: processes of the sandbox import `rewards.code.box` with nothing but the standard library.
"""
