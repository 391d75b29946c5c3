"""What the benchmarks against another tool share: its environment, a device for both, how runs are measured."""
