"""Seeded generators: the embedded default of every workload, in the public schema of the data set it stands for."""
