"""The studies: run as notebooks, shown in a gallery, their numbers set beside the paper's."""
