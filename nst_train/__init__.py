"""Models: training, labeling and evaluating with torch, timm and Accelerate."""
