"""Operations that torch.vmap has no rule for."""

import torch


class quiet_fallback:
    """vmap says in a warning that it loops over an operation that it has no rule for; that is no user's concern."""

    def __enter__(self) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)


class rules_only:
    """An operation that vmap has no rule for is an error: looping over it gains nothing."""

    def __enter__(self) -> None:
        self.before = torch._C._functorch._is_vmap_fallback_enabled()
        torch._C._functorch._set_vmap_fallback_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._functorch._set_vmap_fallback_enabled(self.before)
