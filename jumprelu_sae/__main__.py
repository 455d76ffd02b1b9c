"`python -m jumprelu_sae` is the console script `jumprelu-sae`"
import sys

from .cli import main

if __name__ == '__main__': sys.exit(main())
