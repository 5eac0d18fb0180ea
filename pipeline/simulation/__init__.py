"""A campaign by a virtual clock: the same policy and the same loop, on tasks that take their time without doing anything."""
