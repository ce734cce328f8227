"""How a step measures losses, gradient and interaction."""
