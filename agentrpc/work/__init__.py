"""Workers and the scheduler: the processes that do things, and the queue that wakes them."""
