"""Speed and memory as ratios: ``python -m benchmarks`` measures, compares with the bars and says what was missed."""
