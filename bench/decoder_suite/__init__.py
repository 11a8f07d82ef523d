"""Suite of decoder layers and steps: phases, layouts, their compiled programs and tables."""
