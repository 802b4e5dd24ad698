"""`python -m aha_lib`, which is `aha` without an installation."""

from aha_lib.commands import main

raise SystemExit(main())
