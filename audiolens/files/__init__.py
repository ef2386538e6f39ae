"""Files: written whole or not at all (`atomic`), read within bounds (`bounded`), and hashed (`integrity`)."""
