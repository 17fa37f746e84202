"""The sandbox: what runs in processes of its own. Standard library only, because these start without any packages.

A supervisor (supervisor.py) is started by the process that wants something judged. It has a zygote (zygote.py), which
forks one process for the solution (solution.py) and one for the tests (tests_side.py). Each gives up, before it reads
its job, whatever it could do harm with (confine.py: limits, capabilities, landlock.py, seccomp.py; namespaces.py for
the zygote as a whole). The solution never sees tests, the zygote sees neither, and only the tests' side has a pipe for
the verdict.
"""
