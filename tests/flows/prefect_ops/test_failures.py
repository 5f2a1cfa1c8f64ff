"""What Prefect's page says of a failed flow run."""

from collections.abc import Callable

import pytest

from flows.prefect_ops.failures import in_one_line
from pipeline.errors import IgptError, UnforeseenError


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (IgptError("raw is gone"), IgptError, "raw is gone"),
        (ValueError("one line"), ValueError, "one line"),
        (ValueError("two\nlines"), UnforeseenError, "ValueError: two lines"),
        (RuntimeError("\x1b[31mred"), UnforeseenError, r"RuntimeError: \x1b[31mred"),
        (KeyboardInterrupt("a\nb"), KeyboardInterrupt, "a\nb"),
    ],
)
def test_the_text_of_an_error_is_one_line(error: BaseException, kind: type[BaseException], text: str) -> None:
    @in_one_line
    def work() -> None:
        raise error

    with pytest.raises(kind) as raised:
        work()
    assert type(raised.value) is kind and str(raised.value) == text
    assert raised.value is error or raised.value.__cause__ is error


def flow_functions() -> list[Callable[..., object]]:
    from flows import build_dataset, demo, pretrain, probe, refresh, scheduled

    modules = (build_dataset, demo, pretrain, probe, refresh, scheduled)
    flows = [value for module in modules for value in vars(module).values() if type(value).__name__ == "Flow"]
    return list({flow.name: flow.fn for flow in flows}.values())


def test_every_flow_fails_in_one_line() -> None:
    functions = flow_functions()
    assert len(functions) == 8
    # Prefect's own name for each is that of the function, and its parameters are the function's.
    assert [function.__name__ for function in functions if function.__code__ is not in_one_line(int).__code__] == []
    assert all(function.__wrapped__.__module__ == function.__module__ for function in functions)  # type: ignore[attr-defined]
