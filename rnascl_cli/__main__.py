"""``python -m rnascl_cli`` is ``rnascl``."""

from rnascl_cli.cli.app import main

if __name__ == "__main__":
    main()
