"""Traffic through the policy, in virtual time: what a pool would have done, and what it would have cost."""
