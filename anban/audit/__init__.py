"""The audit of a dirty image collection: what does not belong, what is broken, what is there twice, and a clean rest.

Offline and read-only: nothing in the audited tree is written. No torch.
"""
