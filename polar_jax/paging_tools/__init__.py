"""Adapters of known shapes, written and timed, so that paging costs are a machine's own."""
