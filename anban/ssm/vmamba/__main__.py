"""`python -m anban.ssm.vmamba`: the forward types and the published networks."""

from __future__ import annotations

from anban.ssm.vmamba.forward_types import forward_types
from anban.ssm.vmamba.vssm import CONFIGURATIONS


def main() -> None:
    """Print both tables."""
    print("Forward types: a base name, then any suffixes (v05_onnone_noz)\n")
    for name, meaning in forward_types():
        print(f"  {name:<12}{meaning}")
    print("\nPublished networks: parameters, multiply-adds at 224 x 224\n")
    for key, published in CONFIGURATIONS.items():
        print(f"  {key:<22}{published.name:<18}{published.parameters:>4} M{published.macs:>6} G")


if __name__ == "__main__":
    main()
