"""Load on servers, from outside: what stands here speaks HTTP to them and is no part of any."""
