"""Child processes that answer a JSON request with a line of JSON: `python -m MODULE REQUEST`."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import InputError, RunError
from tests.child import NO_LIMIT_S, ChildError, Ended, run_module


def ask(
    module: str, request: Mapping[str, Any], *, timeout_s: float = NO_LIMIT_S, **variables: str
) -> tuple[dict[str, Any], Ended]:
    """Send a request to a module in a child process; return the answer and how the child ended.

    Args:
        module: name of a module whose `main` calls `answer_request`.
        request: `do` selects a function of the module; the other items are its arguments.
        timeout_s: time limit, after which the child is killed.
        variables: environment variables of the child, in addition to those of this process.

    Raises:
        InputError: if the child refused its input.
        RunError: if the child failed; this is a `ChildError` if the child died or took too long.
    """
    message = json.dumps(request, default=str)  # `str` converts paths
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
    """Read a request from the first command-line argument, and print the answer as a JSON line."""
    request = json.loads(sys.argv[1])
    function = functions[request.pop("do")]
    try:
        result = function(**request)
    except InputError as error:
        result = {"refusal": str(error)}
    except RunError as error:
        result = {"failure": str(error)}
    print(json.dumps(result))  # noqa: T201
