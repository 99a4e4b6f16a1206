"""Operations that torch.vmap has no rule for."""

import torch


class quiet_fallback:
    """Silence vmap's warning that it loops over an operation that it has no batching rule for."""

    def __enter__(self) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)


class rules_only:
    """Make vmap raise an error at an operation without a batching rule, since looping over it would gain nothing."""

    def __enter__(self) -> None:
        self.before = torch._C._functorch._is_vmap_fallback_enabled()
        torch._C._functorch._set_vmap_fallback_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_enabled(self.before)
