"""RL post-training of language models: dataflow, algorithms, planning and launcher."""
