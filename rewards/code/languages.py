"""Other languages than Python, by the compilers and interpreters that this machine has."""

from __future__ import annotations

import os
import shutil
from typing import Any, NamedTuple

from rlft.errors import UserError

_SHOWN = ("/usr/", "/bin/")  # what the sandbox shows of programs


class Language(NamedTuple):
    """How its programs are run. The first word of a command is looked up; `./` is the scratch folder. `sample` prints 1
    and is run first: a runtime that misses something in the sandbox is no fault of a program."""

    file: str
    compile: tuple[str, ...]
    run: tuple[str, ...]
    sample: str


_C_MAIN = '#include <stdio.h>\nint main() { puts("1"); }\n'
_JAVA_MAIN = "public class Main { public static void main(String[] words) { System.out.println(1); } }\n"
_GO_MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(1) }\n'
_CPP = ("g++", "-O2", "-std=c++17", "-w", "-o", "main", "main.cpp")
_JAVA = ("java", "-Xss64m", "-XX:+UseSerialGC", "Main")
LANGUAGES = {
    "c": Language("main.c", ("gcc", "-O2", "-std=c11", "-w", "-o", "main", "main.c", "-lm"), ("./main",), _C_MAIN),
    "cpp": Language("main.cpp", _CPP, ("./main",), _C_MAIN),
    "go": Language("main.go", ("go", "build", "-o", "main", "main.go"), ("./main",), _GO_MAIN),
    "rust": Language(
        "main.rs", ("rustc", "-O", "-o", "main", "main.rs"), ("./main",), 'fn main() { println!("1"); }\n'
    ),
    "java": Language("Main.java", ("javac", "-nowarn", "Main.java"), _JAVA, _JAVA_MAIN),
    "javascript": Language("main.js", (), ("node", "--stack-size=8000", "main.js"), "console.log(1)\n"),
    "bash": Language("main.sh", (), ("bash", "main.sh"), "echo 1\n"),
    "perl": Language("main.pl", (), ("perl", "main.pl"), 'print "1\\n";\n'),
    "ruby": Language("main.rb", (), ("ruby", "main.rb"), "puts 1\n"),
}


def command_for(language: str) -> dict[str, Any]:
    """{"language", "file", "compile", "run"} with full paths. Raises UserError for an unknown language, or one whose
    tools are not here, or not where the sandbox can show them."""
    if language not in LANGUAGES:
        raise UserError(f"reward 'code': language is {language!r}; expected python, {', '.join(LANGUAGES)}")
    found = LANGUAGES[language]
    return {
        "language": language,
        "file": found.file,
        "compile": _placed(language, found.compile),
        "run": _placed(language, found.run),
    }


def _placed(language: str, words: tuple[str, ...]) -> list[str]:
    if not words or words[0].startswith("./"):
        return list(words)
    path = shutil.which(words[0], path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None or not os.path.realpath(path).startswith(_SHOWN):
        place = f"only at {shutil.which(words[0])}" if shutil.which(words[0]) else "not"
        raise UserError(
            f"reward 'code': language {language} needs {words[0]}, which is {place} installed here; the sandbox shows "
            "programs below /usr. Install it with the system's packages."
        )
    return [os.path.realpath(path), *words[1:]]
