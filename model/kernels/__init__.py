"""Fast paths behind the functions of `model`, each tested against the slow one that it replaces."""
