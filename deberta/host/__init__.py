"""What orchestrates the stages. May import docker; never torch."""
