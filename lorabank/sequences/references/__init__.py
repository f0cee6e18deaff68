"""What a sequence trains and scores beside the strategies, though no adapter can stand for it: reference points."""
