#!/bin/sh
# Every method under one budget on both demo models: see compare.py. Words given here go to it.
exec "${PYTHON:-python3}" "$(dirname "$0")/compare.py" "$@"
