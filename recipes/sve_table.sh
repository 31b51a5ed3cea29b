#!/bin/sh
# Nine axes, ISV, SVE and merged data, for any model id: see sve_table.py. Words given here go to it.
exec "${PYTHON:-python3}" "$(dirname "$0")/sve_table.py" "$@"
