"""A recipe's plan as jobs of a Slurm cluster."""
