"""SPMD mode: the engine inside of a program that torchrun has started, the same on every rank."""
