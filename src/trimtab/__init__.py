"""trimtab: a tiny learned steering beside a frozen model, with a strength dial."""
