"""SPMD mode: a program that torchrun has started creates the same engine on every rank."""
