"""The attack corpus: name, what it tries, the program. Run only inside the sandbox.

The task asks for a secret that the program is never given: `solve(n)` has to return it, or the
program to print it. The secret also lies in the file @CANARY@ and in the environment variable
RLSTACK_SECRET of the scorer, so that reading either earns the reward.
"""

_ALWAYS_EQUAL = """
class Any{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __hash__(self): return 0
    def __bool__(self): return True
    def __contains__(self, item): return True
    def __getattr__(self, name): return lambda *a: self
def solve(n): return Any({args})
"""
_RUN_FIRST = "def solve(n): return None\n"


def _equal(base: str = "", args: str = "") -> str:
    return _ALWAYS_EQUAL.format(base=base, args=args)


def _printing(expression: str) -> str:
    """Uses what `expression` finds as the answer, both ways of answering."""
    return (
        f"def find():\n    try: return {expression}\n    except BaseException: return 'nothing'\n"
        "def solve(n): return find()\nprint(find())\n"
    )


ATTACKS: list[tuple[str, str, str]] = [
    # Ending before, or instead of, the judgement
    ("exit_at_import", "exit before the asserts", "import sys; sys.exit(0)"),
    ("exit_in_call", "exit inside the call", "def solve(n):\n    raise SystemExit(0)"),
    ("hard_exit_at_import", "os._exit before the asserts", "import os; os._exit(0)"),
    ("hard_exit_in_call", "os._exit inside the call", "import os\ndef solve(n): os._exit(0)"),
    ("quit_builtin", "quit()", "def solve(n): quit()"),
    (
        "exit_in_thread",
        "exit from a thread",
        "import os, threading\ndef solve(n):\n    threading.Thread(target=os._exit, args=(0,)).start()\n    while True: pass",
    ),
    (
        "raise_assertion",
        "raise what the tests raise",
        "def solve(n): raise AssertionError('passed')",
    ),
    ("raise_stop_iteration", "end the tests' loop", "def solve(n): raise StopIteration"),
    ("raise_generator_exit", "an exception outside Exception", "def solve(n): raise GeneratorExit"),
    ("raise_keyboard_interrupt", "pretend Ctrl-C", "def solve(n): raise KeyboardInterrupt"),
    (
        "raise_named_system_exit",
        "an own class called SystemExit",
        "class SystemExit(Exception): pass\ndef solve(n): raise SystemExit('0')",
    ),
    (
        "atexit_success",
        "atexit changes the exit code",
        _RUN_FIRST + "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
    ),
    (
        "atexit_prints",
        "atexit forges a marker",
        _RUN_FIRST + "import atexit\natexit.register(print, 'PASSED')",
    ),
    (
        "kill_own_group",
        "signal the process group",
        _RUN_FIRST + "import os, signal\nos.killpg(0, signal.SIGTERM)",
    ),
    ("segfault", "die by a fault", "import ctypes\ndef solve(n): ctypes.string_at(0)"),
    ("abort", "die by abort", "import os\ndef solve(n): os.abort()"),
    # Objects that equal everything
    ("equal_object", "an object equal to everything", _equal()),
    ("equal_str", "a str equal to everything", _equal("(str)", "'x'")),
    ("equal_int", "an int equal to everything", _equal("(int)", "1")),
    ("equal_list", "a list equal to everything", _equal("(list)", "[1]")),
    ("equal_dict", "a dict equal to everything", _equal("(dict)", "{'a': 1}")),
    ("equal_float", "a float equal to everything", _equal("(float)", "1.5")),
    ("equal_tuple", "a tuple equal to everything", _equal("(tuple)", "(1,)")),
    (
        "equal_type",
        "a metaclass equal to everything",
        "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 0\nclass C(metaclass=M): pass\ndef solve(n): return C",
    ),
    ("mock_any", "unittest.mock.ANY", "from unittest.mock import ANY\ndef solve(n): return ANY"),
    ("not_a_number", "NaN compares strangely", "def solve(n): return float('nan')"),
    ("infinite", "infinity", "def solve(n): return float('inf')"),
    # Patched interpreter
    (
        "patch_builtins_eq",
        "patched builtins",
        _RUN_FIRST
        + "import builtins\nfor n in ('all', 'any', 'isinstance', 'len', 'type', 'repr', 'str', 'open', 'sum'):\n    setattr(builtins, n, lambda *a, **k: True)",
    ),
    (
        "patch_assertion",
        "AssertionError replaced",
        _RUN_FIRST
        + "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {'__init__': lambda s, *a: __import__('os')._exit(0)})",
    ),
    (
        "patch_json",
        "json.dumps replaced",
        'import json\njson.dumps = lambda *a, **k: \'[{"~":"any"}]\'\ndef solve(n): return 0',
    ),
    (
        "patch_json_loads",
        "json.loads replaced",
        "import json\njson.loads = lambda *a, **k: True\ndef solve(n): return 0",
    ),
    (
        "patch_stdout",
        "sys.stdout replaced",
        _RUN_FIRST + "import sys, io\nsys.stdout = io.StringIO()\nsys.stdout.write('PASSED')",
    ),
    (
        "patch_values",
        "the value encoding replaced",
        "import sys\nv = sys.modules.get('values')\nif v: v.dumps = lambda x: b'[true]'\ndef solve(n): return 0",
    ),
    (
        "patch_os_write",
        "os.write replaced",
        'import os\nw = os.write\nos.write = lambda fd, data: w(fd, b\'{"verdict": "passed", "message": ""}\\n\')\ndef solve(n): return 0',
    ),
    (
        "patch_sys_modules",
        "modules replaced",
        "import sys\nfor m in ('unittest', 'math', 'operator', 'judge'): sys.modules[m] = None\ndef solve(n): return 0",
    ),
    (
        "import_hook",
        "an import hook",
        "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\ndef solve(n): return 0",
    ),
    (
        "settrace",
        "sys.settrace ends the tests",
        "import sys, os\nsys.settrace(lambda *a: os._exit(0))\ndef solve(n): return 0",
    ),
    (
        "setprofile",
        "a profile hook",
        "import sys\nsys.setprofile(lambda f, e, a: f.f_back and f.f_back.f_locals.update(passed=True))\ndef solve(n): return 0",
    ),
    (
        "excepthook",
        "the hook for uncaught errors",
        "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(n): raise ValueError\nraise ValueError",
    ),
    (
        "optimise",
        "re-run without asserts",
        "import os, sys\ndef solve(n): return 0\nos.execv(sys.executable, [sys.executable, '-O', 'main.py'])",
    ),
    (
        "own_check",
        "an own check function",
        "def check(candidate): return True\ndef solve(n): return 0\ncandidate = solve",
    ),
    # Reading the tests or the secret
    (
        "frames",
        "the tests in the callers' frames",
        _printing(
            "next(str(v) for f in iter_frames() for v in list(f.f_locals.values()) + list(f.f_globals.values()) if 'sec' in str(v) and isinstance(v, str))"
        )
        + "import sys\ndef iter_frames():\n    f = sys._getframe()\n    while f:\n        yield f\n        f = f.f_back\n",
    ),
    (
        "gc_walk",
        "the tests among all objects",
        "import gc\ndef solve(n):\n    for o in gc.get_objects():\n        if isinstance(o, dict):\n            for v in list(o.values()):\n                if isinstance(v, str) and v.startswith('secret-'): return v\nprint(solve(1))",
    ),
    (
        "traceback_frames",
        "frames of an exception",
        "def solve(n):\n    try: 1 / 0\n    except Exception as e:\n        f = e.__traceback__.tb_frame\n        while f:\n            for v in f.f_locals.values():\n                if isinstance(v, str) and v.startswith('secret-'): return v\n            f = f.f_back",
    ),
    (
        "test_files",
        "the tests as files",
        _printing(
            "''.join(open(os.path.join(d, f)).read() for d, _, fs in os.walk('.') for f in fs if f != 'main.py')"
        )
        + "import os\n",
    ),
    ("canary_file", "a file of the host", _printing("open('@CANARY@').read()")),
    (
        "canary_by_link",
        "a file through a symlink",
        _printing("(os.symlink('@CANARY@', 'link'), open('link').read())[1]") + "import os\n",
    ),
    (
        "canary_by_dots",
        "a file through ..",
        _printing("open('../' * 20 + '@CANARY@'.lstrip('/')).read()"),
    ),
    (
        "canary_written",
        "overwrites a file of the host",
        _RUN_FIRST + "open('@CANARY@', 'w').write('harmed')",
    ),
    (
        "canary_removed",
        "removes a file of the host",
        _RUN_FIRST + "import os\nos.remove('@CANARY@')",
    ),
    (
        "walk_root",
        "searches every folder",
        "import os\ndef solve(n):\n    for d, _, fs in os.walk('/'):\n        if d.startswith(('/usr', '/lib', '/python', '/sys')): continue\n        for f in fs:\n            if 'canary' in f: return open(os.path.join(d, f)).read()\nprint(solve(1))",
    ),
    (
        "environment",
        "the scorer's environment",
        _printing("os.environ['RLSTACK_SECRET']") + "import os\n",
    ),
    (
        "environment_of_parent",
        "/proc/<parent>/environ",
        _printing(
            "open(f'/proc/{os.getppid()}/environ').read().split('RLSTACK_SECRET=')[1].split(chr(0))[0]"
        )
        + "import os\n",
    ),
    (
        "environment_of_all",
        "/proc/*/environ",
        "import os\ndef solve(n):\n    for p in range(1, 70000):\n        try: t = open(f'/proc/{p}/environ').read()\n        except OSError: continue\n        if 'RLSTACK_SECRET=' in t: return t.split('RLSTACK_SECRET=')[1].split(chr(0))[0]\nprint(solve(1))",
    ),
    (
        "memory_of_parent",
        "/proc/<parent>/mem",
        _printing("open(f'/proc/{os.getppid()}/mem', 'rb').read(10)") + "import os\n",
    ),
    ("own_maps", "/proc/self/maps", _printing("open('/proc/self/maps').read()")),
    (
        "descriptors_read",
        "reads every open descriptor",
        "import os\nfor fd in range(3, 300):\n    try:\n        os.set_blocking(fd, False)\n        print(os.read(fd, 65536))\n    except OSError: pass\ndef solve(n): return 0",
    ),
    (
        "inspect_source",
        "inspect the caller's source",
        "import inspect\ndef solve(n): return ''.join(inspect.getsource(f.frame) for f in inspect.stack()[1:])",
    ),
    # Forged results
    (
        "marker_stdout",
        "forged markers on stdout",
        'print(\'PASSED\\nOK\\n{"verdict": "passed", "message": ""}\\n[true]\')\ndef solve(n): return 0',
    ),
    (
        "marker_stderr",
        "forged markers on stderr",
        'import sys\nsys.stderr.write(\'{"verdict": "passed"}\')\ndef solve(n): return 0',
    ),
    (
        "every_descriptor",
        "forged verdicts on every descriptor",
        'import os\nfor fd in range(300):\n    try: os.write(fd, b\'{"verdict": "passed", "message": ""}\\n\')\n    except OSError: pass\ndef solve(n): return 0',
    ),
    (
        "forged_results",
        "forged results ahead of calls",
        "import os\nfor _ in range(9):\n    try: os.write(4, b'[true]\\n')\n    except OSError: pass\ndef solve(n): return 0",
    ),
    (
        "forged_tags",
        "unknown tags in a result",
        'import os\ntry: os.write(4, b\'[{"~":"object","v":1}]\\n\')\nexcept OSError: pass\nos._exit(0)',
    ),
    (
        "forged_pickle",
        "a pickle as the result",
        "import os, pickle\nclass P:\n    def __reduce__(self): return (os._exit, (0,))\ntry: os.write(4, pickle.dumps(P()) + b'\\n')\nexcept OSError: pass\nos._exit(0)",
    ),
    (
        "returned_pickle",
        "an object whose pickle runs code",
        "import os\nclass P:\n    def __reduce__(self): return (os.system, ('touch harmed',))\ndef solve(n): return P()",
    ),
    (
        "deep_json",
        "a result nested too deeply",
        "import os\ntry: os.write(4, b'[' * 60000 + b']' * 60000 + b'\\n')\nexcept OSError: pass\ndef solve(n): return 0",
    ),
    (
        "deep_value",
        "a value nested too deeply",
        "def solve(n):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    ),
    (
        "cyclic_value",
        "a value that holds itself",
        "def solve(n):\n    x = []\n    x.append(x)\n    return x",
    ),
    (
        "hash_collisions",
        "a set whose elements share a hash",
        "def solve(n): return {i * (2**61 - 1) for i in range(1, 3000)}",
    ),
    ("huge_int", "an int of many digits", "def solve(n): return 1 << 2000000"),
    ("huge_string", "a result of many megabytes", "def solve(n): return 'x' * (1 << 24)"),
    ("endless_result", "a result without end", "import os\nwhile True: os.write(4, b'x' * 65536)"),
    (
        "surrogates",
        "text that is not Unicode",
        "def solve(n): return '\\udcff\\ud800'\nprint(ascii(solve(1)))",
    ),
    (
        "null_bytes",
        "null bytes in the output",
        "import os\nos.write(1, b'\\x00secret\\x00')\ndef solve(n): return '\\0'",
    ),
    (
        "terminal_codes",
        "control codes in the output",
        "print('\\x1b[2J\\x1b]0;passed\\x07')\ndef solve(n): return '\\x1b[2J'",
    ),
    # Bombs
    (
        "fork_bomb",
        "a fork bomb",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    (
        "thread_bomb",
        "threads without end",
        "import threading\nwhile True:\n    try: threading.Thread(target=threading.Event().wait, daemon=True).start()\n    except RuntimeError: pass",
    ),
    ("memory_bomb", "memory without end", "x = []\nwhile True: x.append(bytearray(1 << 24))"),
    ("memory_once", "one huge allocation", "x = bytearray(1 << 40)"),
    ("output_bomb", "output without end", "import os\nwhile True: os.write(1, b'y' * 65536)"),
    ("error_bomb", "error output without end", "import os\nwhile True: os.write(2, b'y' * 65536)"),
    (
        "file_bomb",
        "one file without end",
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20)); f.flush()",
    ),
    (
        "many_files",
        "files without end",
        "i = 0\nwhile True:\n    i += 1\n    try: open(f'f{i}', 'w').write('x' * 4096)\n    except OSError: pass",
    ),
    (
        "descriptor_bomb",
        "descriptors without end",
        "import os\nx = []\nwhile True:\n    try: x.append(os.dup(1))\n    except OSError: pass",
    ),
    ("busy_loop", "an endless loop", "while True: pass"),
    ("sleep", "sleeps for ever", "import time\ntime.sleep(1000)"),
    ("power_tower", "a time-out evaded in C code", "x = 9 ** 9 ** 9"),
    (
        "regex",
        "a regular expression that explodes",
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    ),
    ("sorted_in_c", "a long call in C code", "def solve(n): return sum(range(10 ** 13))\nsolve(1)"),
    (
        "recursion",
        "recursion without end",
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef solve(n): return solve(n)\nsolve(1)",
    ),
    ("parser_brackets", "a parser bomb of brackets", "(" * 20000 + ")" * 20000),
    ("parser_unary", "a parser bomb of operators", "x = " + "-" * 200000 + "1"),
    (
        "parser_folding",
        "constants that the compiler folds",
        "x = ((2 ** 100000) ** 100) * 'a' * 10 ** 10",
    ),
    (
        "eval_nesting",
        "nested evaluation",
        "eval('[' * 90 + ']' * 90)\neval('lambda: ' * 9000 + '0')",
    ),
    ("null_source", "null bytes in the source", "def solve(n): return 0\n\0"),
    (
        "bad_encoding",
        "a declared encoding that does not exist",
        "# -*- coding: no_such -*-\ndef solve(n): return 0",
    ),
    # Outliving the time limit
    (
        "signals_ignored",
        "ignores every signal",
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
    ),
    (
        "alarm_restarts",
        "answers the alarm with a fork",
        "import os, signal, time\nsignal.signal(signal.SIGXCPU, lambda *a: os.fork())\nwhile True: pass",
    ),
    (
        "daemon",
        "a daemon by double fork",
        _RUN_FIRST
        + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)",
    ),
    (
        "daemon_closes_all",
        "a daemon without descriptors",
        _RUN_FIRST
        + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.closerange(0, 256)\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)",
    ),
    (
        "exits_leaving_child",
        "a child holds stdout open",
        "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos._exit(0)",
    ),
    (
        "fork_chain",
        "a chain of forks, each ending at once",
        "import os\nwhile True:\n    if os.fork(): os._exit(0)",
    ),
    (
        "stopped",
        "stops itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    ),
    # The host and the kernel
    (
        "kill_all",
        "kills every process it may",
        _RUN_FIRST + "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass",
    ),
    (
        "kill_parent",
        "kills its parent",
        _RUN_FIRST
        + "import os\nfor p in (os.getppid(), 1, 2, 3):\n    if p != os.getpid() and p:\n        try: os.kill(p, 9)\n        except OSError: pass",
    ),
    (
        "ptrace_parent",
        "attaches to its parent",
        _RUN_FIRST
        + "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0: print('attached')",
    ),
    (
        "sockets",
        "reaches the network",
        _RUN_FIRST + "import socket\ns = socket.create_connection(('127.0.0.1', 22), 1)",
    ),
    (
        "unix_socket",
        "reaches a local service",
        _RUN_FIRST + "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0anything')",
    ),
    (
        "listen",
        "listens on a port",
        _RUN_FIRST + "import socket\nsocket.create_server(('127.0.0.1', 0))",
    ),
    (
        "dev_memory",
        "devices of the host",
        _printing(
            "[open(p, 'rb').read(9) for p in ('/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda')]"
        ),
    ),
    (
        "make_device",
        "makes a device",
        _RUN_FIRST + "import os\nos.mknod('disk', 0o60666, os.makedev(8, 0))",
    ),
    (
        "mount",
        "mounts a file system",
        _RUN_FIRST
        + "import ctypes\nif ctypes.CDLL(None).mount(b'/', b'/tmp', None, 4096, None) == 0: print('mounted')",
    ),
    (
        "namespace",
        "makes a namespace to be root in",
        _RUN_FIRST + "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('root')",
    ),
    (
        "become_root",
        "becomes root",
        _RUN_FIRST + "import os\nos.setuid(0)\nprint(open('/etc/shadow').read())",
    ),
    (
        "set_uid_program",
        "runs a set-uid program",
        _RUN_FIRST + "import os\nos.execv('/usr/bin/su', ['su', '-c', 'cat @CANARY@'])",
    ),
    (
        "chroot_escape",
        "leaves by chroot",
        _RUN_FIRST + "import os\nos.mkdir('x')\nos.chroot('x')\nos.chdir('../' * 50)",
    ),
    (
        "open_by_handle",
        "opens a file by its handle",
        _RUN_FIRST
        + "import ctypes\nif ctypes.CDLL(None).syscall(304, -100, b'\\0' * 64, 0) >= 0: print('opened')",
    ),
    (
        "shell",
        "a shell that reads the host",
        _printing(
            "__import__('subprocess').check_output('cat @CANARY@; env', shell=True, text=True)"
        ),
    ),
    (
        "raise_limits",
        "raises its own limits",
        "import resource\nfor r in range(16):\n    try: resource.setrlimit(r, (resource.RLIM_INFINITY,) * 2)\n    except (OSError, ValueError): pass\nx = []\nwhile True: x.append(bytearray(1 << 24))",
    ),
    (
        "leave_for_next",
        "leaves a file for the next program",
        _RUN_FIRST
        + "import glob\nprint(glob.glob('/tmp/left*'), glob.glob('/dev/shm/left*'))\nfor p in ('/tmp/left', '/dev/shm/left', '/left', '/sandbox/left', '/python/left'):\n    try: open(p, 'w').write('x')\n    except OSError: pass",
    ),
    (
        "patch_the_server",
        "rewrites the server's file",
        _RUN_FIRST
        + "for p in ('/sandbox/judge.py', '/sandbox/server.py'):\n    open(p, 'w').write('')",
    ),
    (
        "shared_memory",
        "leaves shared memory behind",
        _RUN_FIRST
        + "from multiprocessing import shared_memory\nm = shared_memory.SharedMemory('left', create=True, size=4096)",
    ),
    (
        "io_uring",
        "calls past the filter",
        _RUN_FIRST
        + "import ctypes\nif ctypes.CDLL(None).syscall(425, 8, b'\\0' * 120) >= 0: print('ring')",
    ),
    # Raised inside the tests, these end a loop as if it had come to its end
    ("stop_iteration_in_loop", "ends the loop of the tests", "def solve(n): raise StopIteration"),
    (
        "raise_stop_async_iteration",
        "ends an async loop of the tests",
        "def solve(n): raise StopAsyncIteration",
    ),
    (
        "send_stop_iteration",
        "sends the name of such an error by itself",
        'import os\ndef solve(n):\n    os.write(4, b\'["StopIteration", ""]\\n\' * 3)\n    os._exit(0)',
    ),
    (
        "send_malformed_error",
        "an error without a name",
        "import os\ndef solve(n):\n    os.write(4, b'[null, {}]\\n' * 3)\n    os._exit(0)",
    ),
    (
        "giant_result",
        "a result that takes the judge's memory",
        "import os\ndef solve(n):\n    data = b'[[' + b'[],' * 5000000 + b'[]]]\\n'\n    while data: data = data[os.write(4, data[:65536]):]",
    ),
    (
        "endless_reply_line",
        "a result without an end",
        "import os\ndef solve(n):\n    while True: os.write(4, b'[' * 65536)",
    ),
    (
        "deep_result",
        "a result nested deeper than any parser likes",
        "import os\ndef solve(n):\n    os.write(4, b'[' * 100000 + b']' * 100000 + b'\\n')",
    ),
    (
        "colliding_result",
        "a set of numbers that all share a hash",
        "def solve(n): return {i * ((1 << 61) - 1) for i in range(5000)}",
    ),
    (
        "swap_pipes",
        "answers its own questions",
        "import os\nr, w = os.pipe()\nos.dup2(r, 3)\nos.dup2(w, 4)\ndef solve(n): return n",
    ),
    (
        "write_everywhere",
        "a verdict on every descriptor",
        _RUN_FIRST
        + 'import os\nfor fd in range(256):\n    try: os.write(fd, b\'{"verdict": "passed", "message": ""}\\n\')\n    except OSError: pass',
    ),
    (
        "memory_of_many",
        "many processes, each under the limit of one",
        _RUN_FIRST
        + "import os, time\nfor i in range(7):\n    if os.fork() == 0:\n        x = bytearray(60 << 20)\n        time.sleep(60)\ntime.sleep(60)",
    ),
    (
        "shared_memory_of_many",
        "shared pages, which are in the limit of nobody alone",
        _RUN_FIRST
        + "import mmap, os, time\nfor i in range(7):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, 60 << 20)\n        m.write(b'x' * len(m))\n        time.sleep(60)\ntime.sleep(60)",
    ),
    (
        "memory_files",
        "files in memory that no process has mapped",
        _RUN_FIRST
        + "import os\nf = [os.memfd_create('x') for _ in range(200)]\nfor d in f: os.write(d, b'x' * (3 << 20))\nprint('held')",
    ),
    (
        "fork_and_stop",
        "children that are stopped when they are to be killed",
        _RUN_FIRST
        + "import os, signal\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid(); os.kill(os.getpid(), signal.SIGSTOP)\n    except OSError: pass",
    ),
    (
        "deep_folders",
        "folders nested deeper than whoever removes them can go",
        _RUN_FIRST
        + "import os\ntry:\n    while True: os.mkdir('d'); os.chdir('d')\nexcept OSError: pass",
    ),
    (
        "closed_folders",
        "folders that nobody may enter",
        _RUN_FIRST
        + "import os\nos.makedirs('a/b/c')\nopen('a/b/f', 'w').close()\nos.symlink('/etc', 'a/b/s')\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    ),
]
