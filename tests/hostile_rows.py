"""Programs of our own, in the form of tests/hostile.py's corpus: each class of attack that we thought of, and honest
programs that a nervous sandbox would refuse. Never run them outside a sandbox."""

# ruff: noqa: E501  (a program is easier to read in as few lines as it has)

from __future__ import annotations

from typing import Any

ADD = "assert add(1, 2) == 3\nassert add(-5, 5) == 0\nassert add(10**6, 1) == 1000001"
HONEST_ADD = "def add(a, b):\n    return a + b\n"


def _row(name: str, must: str, code: str, tests: Any = ADD, entry: str = "add") -> dict[str, Any]:
    mode = "call" if isinstance(tests, str) else "stdio"
    return {"name": name, "must": must, "code": code, "tests": tests, "entry": entry, "mode": mode}


def _tries(name: str, must: str, statements: str) -> dict[str, Any]:
    """Does harm when it is loaded, if it can, and then adds."""
    body = "".join(f"    {line}\n" for line in statements.strip().splitlines())
    return _row(name, must, f"import os, sys, ctypes\ntry:\n{body}except BaseException:\n    pass\n{HONEST_ADD}")


_FRAME = "import json, os\ndata = json.dumps({message}).encode()\nframe = len(data).to_bytes(4, 'little') + data\n"
_FORGE = "for fd in range(3, 64):\n    try:\n        os.write(fd, frame)\n    except OSError:\n        pass\n"
_SUMS = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "-5 5\n", "stdout": "0\n"}]
_SKIP = """
import unittest
class T(unittest.TestCase):
    def test_a(self):
        self.assertEqual(add(1, 2), 3)
"""

FOOLING = [
    _row("always_equal", "fail", "class E:\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef add(a, b):\n    return E()\n"),
    _row("ends_the_loop", "fail", "def add(a, b):\n    raise StopIteration\n",
         "for got, want in zip(map(add, [1, 5], [2, 5]), [3, 10]):\n    assert got == want"),
    _row("empties_its_argument", "fail", "def order(xs):\n    xs.clear()\n    return []\n",
         "xs = [3, 1, 2]\nassert order(xs) == sorted(xs)", "order"),
    _row("says_that_it_emptied_its_argument", "fail", "import sys\nfor depth in range(9):\n    made_by = sys._getframe(depth).f_globals\n"
         "    if '_Served' in made_by:\n        made_by['_Served'].answer = lambda self, request: ['ok', ['l'], [['l']]]\n        break\n"
         "def order(xs):\n    return []\n", "xs = [3, 1, 2]\nassert order(xs) == sorted(xs)", "order"),
    _row("own_sorted", "fail", "def sorted(xs):\n    return 3\ndef add(a, b):\n    return [0]\n",
         "assert sorted(add([1, 2], [3])) == [1, 2, 3]"),
    _row("own_module_of_tests", "fail", "import math\nmath.isclose = lambda *a, **k: True\ndef add(a, b):\n    return 0\n",
         "assert math.isclose(add(1, 2), 3)"),
    _row("forges_verdict", "fail",
         _FRAME.format(message="{'passed': 3, 'total': 3, 'detail': '', 'fault': ''}") + _FORGE + "os._exit(0)\n"),
    _row("forges_fault", "fail", _FRAME.format(message="{'broken': 'the sandbox'}") + _FORGE + "os._exit(1)\n", _SUMS),
    _row("forges_answers", "fail", _FRAME.format(message="['ok', ['l', 3], None]") + _FORGE * 3 + "os._exit(0)\n"),
    _row("searches_memory", "fail", "import gc, re\ndef add(a, b):\n    for one in gc.get_objects():\n"
         "        found = re.search(rf'add\\({a}, {b}\\) == (-?\\d+)', str(one)[:9999]) if isinstance(one, (list, dict)) else None\n"
         "        if found:\n            return int(found[1])\n"),
    _row("skips_the_case", "fail", "import unittest\ndef add(a, b):\n    raise unittest.SkipTest('not today')\n", _SKIP),
    _row("exits_when_called", "fail", "import sys\ndef add(a, b):\n    sys.exit(0)\n"),
    _row("dies_and_is_forgiven", "fail", "import os\ndef add(a, b):\n    os._exit(0)\n",
         "try:\n    v = add(1, 2)\nexcept:\n    v = 3\nassert v == 3"),
    _row("closes_everything", "fail", "import os\nos.closerange(0, 100)\n" + HONEST_ADD),
    _row("text_that_raises", "fail", "class E(Exception):\n    def __str__(self):\n        raise self\ndef add(a, b):\n    raise E\n"),
    _row("claims_a_class", "fail", "class I(int):\n    __class__ = property(lambda s: bool)\n    __eq__ = lambda *a: True\n"
         "    __hash__ = int.__hash__\ndef add(a, b):\n    return I(0)\n"),
]  # fmt: skip

ESCAPING = [
    _tries("sockets", "pass", "import socket\nfor kind, place in ((1, '\\0canary_abs'), (1, '/tmp/canary_unix.sock')):\n"
           "    try:\n        socket.socket(socket.AF_UNIX, kind).connect(place)\n    except OSError:\n        pass\n"
           "socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 47802))"),
    _tries("pair_of_datagrams", "pass", "import socket\nsocket.socketpair(1, 2)[0].sendto(b'x', '\\0canary_abs')"),
    _tries("loopback", "pass", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:47801', timeout=1)"),
    _tries("permissions_of_others", "pass", "os.chmod('/tmp/canary_secret', 0o777)"),
    _tries("times_of_others", "pass", "os.utime('/tmp/canary_secret', (1, 1))"),
    _tries("owner_of_others", "pass", "os.chown('/tmp/canary_secret', 12345, 12345)"),
    _tries("empties_others", "pass", "os.truncate('/tmp/canary_secret', 0)"),
    _tries("links", "pass", "os.link('/tmp/canary_secret', 'x')\nopen('/tmp/canary_link', 'w').write(open('x').read())"),
    _tries("shared_memory", "pass", "ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600)\n"
           "from multiprocessing.shared_memory import SharedMemory\nSharedMemory('canary_shared', True, 1 << 20)"),
    _tries("executes", "pass", "os.execv('/bin/sh', ['sh', '-c', 'touch /tmp/canary_exec'])"),
    _tries("spawns", "pass", "import subprocess\nsubprocess.run(['touch', '/tmp/canary_spawn'])"),
    _tries("vfork", "pass", "if ctypes.CDLL(None).vfork() == 0:\n    os._exit(0)"),
    _tries("signals_by_owner", "pass", "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, 8, os.getppid())\n"
           "fcntl.fcntl(r, 4, 0o20000)\nos.write(w, b'x')"),
    _tries("limits_of_the_parent", "pass", "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))"),
    _tries("freezes_the_parent", "pass", "import signal\nos.kill(os.getppid(), signal.SIGSTOP)"),
    _tries("unkillable_by_parent", "pass", "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)"),
    _tries("bare_clone", "pass", "if ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) == 0:\n    open('/tmp/canary_clone', 'w')\n    os._exit(0)"),
    _tries("clone3", "pass", "given = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)\nif ctypes.CDLL(None).syscall(435, given, 88) == 0:\n"
           "    open('/tmp/canary_clone3', 'w')\n    os._exit(0)"),
    _tries("renames_out", "pass", "open('x', 'w').close()\nos.rename('x', '/tmp/canary_renamed')"),
    _tries("named_memory", "pass", "c = ctypes.CDLL(None)\nc.shm_open(b'/canary_posix', 0o102, 0o600)\nc.sem_open(b'/canary_sem', 0o100, 0o600, 1)\n"
           "c.mq_open(b'/canary_queue', 0o102, 0o600, None)"),
    _tries("queued_signal", "pass", "ctypes.CDLL(None).syscall(129, os.getppid(), 9, ctypes.create_string_buffer(128))"),
    _tries("signal_by_descriptor", "pass", "import signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)"),
    _tries("empties_the_library", "pass", "for n, a in ((2, (os.__file__.encode(), 0o1000, 0)), (257, (-100, os.__file__.encode(), 0o1000, 0)), "
           "(76, (os.__file__.encode(), 0))):\n    ctypes.CDLL(None).syscall(n, *a)"),
    _row("whole_library", "pass", "import os\ndef add(a, b):\n    return os.path.getsize(os.__file__)\n", "assert add(1, 2) > 10000"),
    _tries("later_thread", "pass", "import threading, time\n"
           "threading.Thread(target=lambda: (time.sleep(0.3), open('/tmp/canary_late', 'w'))).start()"),
    _row("environment", "pass", "import os\ndef add(a, b):\n    return str(dict(os.environ))\n", "assert 'canary' not in add(1, 2).lower()"),
    _row("memory_of_the_parent", "pass", "import os\ndef add(a, b):\n    try:\n        return open(f'/proc/{os.getppid()}/maps').read()\n"
         "    except OSError:\n        return ''\n", "assert add(1, 2) == ''"),
]  # fmt: skip

BOMBS = [
    _row("stops_itself", "fail", "import os, signal\ndef add(a, b):\n    os.kill(os.getpid(), signal.SIGSTOP)\n"),
    _row("holds_the_interpreter", "fail", "import re\ndef add(a, b):\n    return bool(re.match(r'(a+)+$', 'a' * 60 + 'b'))\n"),
    _row("fills_the_disk", "fail", "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'wb').write(b'x' * (1 << 20))\n"),
    _row("makes_files", "fail", "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'wb').close()\n"),
    _row("digs_deep", "any", "import os\nfor i in range(900):\n    os.mkdir('d')\n    os.chdir('d')\n" + HONEST_ADD),
    _row("in_the_way", "any", "import os\nfor pid in (1, os.getppid()):\n    for i in range(99):\n        os.makedirs(f'.up-{pid}-{i}/x/y', mode=0o300)\n" + HONEST_ADD),
    _row("clean_after_that", "pass", "import os\ndef add(a, b):\n    return a + b + len(os.listdir())\n"),
    _row("one_large_value", "fail", "def add(a, b):\n    return 'x' * (200 << 20)\n"),
    _row("many_values", "fail", "def add(a, b):\n    return list(range(10**8))\n"),
    _row("swallows_all", "fail", "def add(a, b):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n"),
    _row("prints_without_end", "fail", "while True:\n    print('3')\n", _SUMS),
    _row("waits_for_more", "fail", "import sys\nwhile True:\n    sys.stdin.read()\n", _SUMS),
]  # fmt: skip

HONEST = [
    _row("in_place", "pass", "def order(xs):\n    xs.sort()\n", "xs = [3, 1, 2]\norder(xs)\nassert xs == [1, 2, 3]", "order"),
    _row("floats", "pass", "def f(x):\n    return {'z': -0.0, 'i': float('inf'), 'n': float('nan')}[x]\n",
         "import math\nassert math.copysign(1, f('z')) == -1\nassert f('i') == math.inf\nassert f('n') != f('n')", "f"),
    _row("big_integers", "pass", "def f(n):\n    return 7**n\n", "assert f(30000) == 7**30000\nassert f(-0) == 1", "f"),
    _row("types", "pass", "import collections, decimal, fractions, datetime\nP = collections.namedtuple('P', 'x y')\ndef f():\n"
         "    return [collections.Counter('aab'), decimal.Decimal('1.10'), fractions.Fraction(1, 3), b'\\xff', 1j,\n"
         "            datetime.date(2024, 2, 29), frozenset({1}), P(1, 2), range(3), {(1, 2): None}, collections.deque([1])]\n",
         "import decimal, fractions, datetime, collections\nassert f() == [{'a': 2, 'b': 1}, decimal.Decimal('1.1'), "
         "fractions.Fraction(2, 6), b'\\xff', 1j, datetime.date(2024, 2, 29), {1}, (1, 2), range(3), {(1, 2): None}, "
         "collections.deque([1])]", "f"),
    _row("raises_what_is_expected", "pass", "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x\n",
         "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'\nassert f(2) == 2", "f"),
    _row("takes_a_function", "pass", "def f(g, xs):\n    return [g(x) for x in xs]\n", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]", "f"),
    _row("without_end", "pass", "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1\n",
         "g = f()\nassert [next(g) for _ in range(3)] == [0, 1, 2]", "f"),
    _row("a_class", "pass", "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n"
         "        self.items.append(x)\n    def pop(self):\n        return self.items.pop()\n",
         "s = Stack()\ns.push(1)\ns.push([2])\nassert s.pop() == [2]\nassert s.items == [1]", "Stack"),
    _row("the_same_object", "pass", "class Only:\n    made = None\n    def __new__(cls):\n        cls.made = cls.made or object.__new__(cls)\n        return cls.made\n"
         "    def me(self):\n        return [self]\n", "a = Only()\nassert a is Only() and a == a.me()[0] and a in {a.me()[0]}\nassert a.me != a.made", "Only"),
    _row("closes_its_output", "pass", "import sys\nprint(sum(map(int, input().split())))\nsys.stdout.close()\n", _SUMS),
    _row("linked_lists", "pass", "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"
         "def f(node):\n    total = 0\n    while node:\n        total, node = total + node.value, node.next\n    return total\n",
         "a = Node(1, Node(2))\nassert f(a) == 3\na.next.value = 5\na.next.next = Node(10)\nassert f(a) == 16 and a.next.value == 5", "f"),
    _row("allocates_at_once", "fail", "import os\nfor i in range(900):\n    with open(f'f{i}', 'wb') as f:\n        os.posix_fallocate(f.fileno(), 0, 60 << 20)\n"),
    _row("deep_recursion", "pass", "import sys\nsys.setrecursionlimit(30000)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n",
         "assert f(20000) == 20000", "f"),
    _row("own_folder", "pass", "import os, tempfile\ndef f():\n    with tempfile.TemporaryDirectory() as d:\n        path = os.path.join(d, 'x')\n"
         "        open(path, 'w').write('hi')\n        os.rename(path, path + 'y')\n        return open(path + 'y').read()\n", "assert f() == 'hi'", "f"),
    _row("event_loop", "pass", "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.001)\n    return x\ndef f(x):\n    return asyncio.run(g(x))\n",
         "assert f(4) == 4", "f"),
    _row("pool_of_threads", "pass", "from concurrent.futures import ThreadPoolExecutor\ndef f(xs):\n    with ThreadPoolExecutor(8) as pool:\n"
         "        return list(pool.map(str, xs))\n", "assert f([1, 2]) == ['1', '2']", "f"),
    _row("dataclasses", "pass", "from dataclasses import dataclass, asdict\n@dataclass\nclass P:\n    x: int\ndef f(x):\n    return asdict(P(x))\n",
         "assert f(3) == {'x': 3}", "f"),
    _row("less_common_imports", "pass", "import bisect, calendar, csv, difflib, hashlib, html, secrets, sqlite3, textwrap, unicodedata, uuid, zlib\n"
         "def f(x):\n    return hashlib.sha256(x).hexdigest()[:4]\n", "assert f(b'') == 'e3b0'", "f"),
    _row("written_at_exit", "pass", "import atexit, io, os, sys\nout = io.StringIO()\natexit.register(lambda: os.write(1, out.getvalue().encode()))\n"
         "a, b = map(int, sys.stdin.buffer.read().split())\nout.write(f'{a + b}\\n')\n", _SUMS),
    _row("own_standard_output", "pass", "import io, sys\nreal = sys.stdout\nsys.stdout = io.StringIO()\nprint(sum(map(int, input().split())))\n"
         "real.write(sys.stdout.getvalue())\n", _SUMS),
    _row("prompts", "pass", "n = input('')\nprint(sum(map(int, n.split())))\n", _SUMS),
    _row("cases_with_a_runner", "pass", HONEST_ADD, _SKIP + "if __name__ == '__main__':\n    unittest.main()\n"),
    _row("functions_of_pytest", "pass", HONEST_ADD, "from solution import add\ndef test_one():\n    assert add(1, 2) == 3\n"),
    _row("much_input", "pass", "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n", [{"stdin": "1 " * 400_000, "stdout": "400000"}]),
    _row("reads_nothing", "pass", "print(3)\n", [{"stdin": "x" * 10**6, "stdout": "3"}]),
    _row("stops_too_early", "fail", "print(3, flush=True)\nimport os\nos._exit(1)\n", [{"stdin": "", "stdout": "3"}]),
    _row("exits_well", "pass", "import sys\ndef main():\n    print(sum(map(int, input().split())))\n    sys.exit()\n"
         "if __name__ == '__main__':\n    main()\n", _SUMS),
]  # fmt: skip

ROWS = [*FOOLING, *ESCAPING, *BOMBS, *HONEST]
