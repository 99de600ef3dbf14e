"""PostgreSQL: the truth and the queue. The only place with SQL."""
