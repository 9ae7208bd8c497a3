"""What every door shares, in the standard library only and cheap to import (the exec dialect).

Each module stands alone: import the one you need, there is no facade.
"""
