"""Ray actors: rollout engines, trainers, frozen models, the scorer, and what moves weights."""
