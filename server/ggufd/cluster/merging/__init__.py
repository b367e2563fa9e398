"""What several servers say of themselves, put together as if one had said it. Pure functions."""
