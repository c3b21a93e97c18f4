"""Rules, rollouts, patch tokens and complexity: pure functions of a law, a seed and a candidate."""
