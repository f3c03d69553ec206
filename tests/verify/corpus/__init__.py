"""Training scripts right ones and wrong ones, for `squall verify`; `index` says which is which."""
