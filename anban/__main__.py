"""`python -m anban` is `anban`."""

from anban.cli.main import main

if __name__ == "__main__":
    main()
