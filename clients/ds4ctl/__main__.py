"""`python -m ds4ctl`."""

from ds4ctl.main import main

if __name__ == "__main__":
    main()
