"""Child processes that answer a JSON request with a line of JSON: `python -m MODULE REQUEST`."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from harness.doctor.child import NO_LIMIT_S, ChildError, Ended, run_module
from harness.errors import InputError, RunError


def ask(
    module: str, request: Mapping[str, Any], *, timeout_s: float = NO_LIMIT_S, **variables: str
) -> tuple[dict[str, Any], Ended]:
    """Have a module answer a request in a process of its own.

    Args:
        module: its `main` calls `answer_request`.
        request: `do` names what is to be done, the rest are that function's arguments.
        timeout_s: after which it is killed.
        variables: of its environment, in addition to this process's.

    Raises:
        InputError: if the child refused its input.
        RunError: if it failed; a `ChildError` if it died or took too long.
    """
    message = json.dumps(request, default=str)  # a path is a text there
    ended = run_module(module, message, timeout_s=timeout_s, **variables)
    try:
        answer = json.loads(ended.output.splitlines()[-1])
    except (IndexError, ValueError):
        raise ChildError(str(ended)) from None
    if "refusal" in answer:
        raise InputError(answer["refusal"])
    if "failure" in answer:
        raise RunError(answer["failure"])
    return dict(answer), ended


def answer_request(functions: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer the request in the first argument, on the last line of standard output."""
    request = json.loads(sys.argv[1])
    function = functions[request.pop("do")]
    try:
        result = function(**request)
    except InputError as error:
        result = {"refusal": str(error)}
    except RunError as error:
        result = {"failure": str(error)}
    print(json.dumps(result))  # noqa: T201
