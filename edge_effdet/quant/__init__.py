"""Lower precision: FP16 and INT8 graphs, the calibration behind them, and the proof of what runs in which precision."""
