"""How the steps join; read `post_training` first."""
