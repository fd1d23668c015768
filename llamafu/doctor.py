"""What `llamafu doctor` sees, under the name by which it is documented."""

from __future__ import annotations

from llamafu.libraries.doctor import Mend, Report, examine

__all__ = ["Mend", "Report", "examine"]
