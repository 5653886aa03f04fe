"""Training: what is learnt from a dataset's layers, by transformers' Trainer and PEFT."""
