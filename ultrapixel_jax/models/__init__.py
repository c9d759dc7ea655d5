"""The networks, channels last: Flax linen modules without state beyond their variables."""
