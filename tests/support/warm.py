"""Imported by the process that ranks are forked from: what each of them would otherwise compute anew."""

from lookaround_ddp.data.digits import digits

digits()
